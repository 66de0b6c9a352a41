"""What every paper needs to run experiments: see the modules, each readable in one sitting."""
