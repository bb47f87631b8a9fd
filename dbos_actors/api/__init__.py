"""What is generated from ``protos/dbos.proto``, and the generator."""
