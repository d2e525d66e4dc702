"""The sets of the protocol: one row type and one loader each."""
