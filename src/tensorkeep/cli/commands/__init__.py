"""The commands, by theme. A command's docstring is its help; it reads options, calls one promise, shows what came back."""
