"""Bridges to other libraries, on this package's public interface only.

Nothing here is imported unless you import it. What needs a library has an extra of its name.
"""
