"""The study: both papers' tables from one command, with seeds, controls and error bars. Import from the modules."""
