"""Bridges to other libraries. They use only this package's public interface.

Nothing here is imported unless you import it. A bridge to a library has an extra of its name.
"""
