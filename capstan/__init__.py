"""The command line of Capstan: one thin file per command; joins the rooms, decides nothing."""

__version__ = "0.1.0"
