"""The commands, one module each: `add_parser(subparsers)` returns its parser, `run(args)` the exit code."""
