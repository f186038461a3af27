"""The command `washp2p`: one module per command. The only package that imports everything."""
