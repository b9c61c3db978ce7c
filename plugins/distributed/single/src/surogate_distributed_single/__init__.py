"""One process on one device for surogate, and the options that say what is sharded."""
