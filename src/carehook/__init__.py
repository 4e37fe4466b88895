"""Carehook tells organizations, by webhook, what happens in care.

`import carehook` brings the contract's types; the service is in the extra `carehook[server]`.
"""

__version__ = "0.1.0"
