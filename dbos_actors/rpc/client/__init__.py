"""gRPC's client side on Trio; begin with `dbos_actors.rpc.client.channel`."""
