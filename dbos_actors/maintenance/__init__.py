"""Looks over a store and mends it; the commands ``check`` and ``repair``.

The rules say what must follow from what: an index from its records, a record from the name it is
stored under. `inspection` walks the store once, in slices, and tells of each thing that breaks a
rule as a `Finding`, which carries the commands that mend it. `check` reports findings, `repair`
carries the commands out, over and over until a walk finds nothing.
"""
