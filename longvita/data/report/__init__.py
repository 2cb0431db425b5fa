"""Looking at the data of a config: what its mix holds and how it is packed, and single sequences, token by token."""
