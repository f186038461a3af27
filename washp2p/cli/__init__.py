"""The command `washp2p`: one module per subcommand. Only this package imports all others."""
