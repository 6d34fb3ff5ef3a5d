"""Console tokens for OpenNebula virtual machines, handed out over XML-RPC."""

__version__ = "0.1.0"
