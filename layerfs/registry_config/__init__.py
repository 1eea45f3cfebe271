"""A registry's own configuration file, as far as it says where the storage is and what may be done with it.

The format is that of distribution 2.x and 3.x, with the environment variables that override it. What is only about
serving HTTP (`http`, `auth`, `middleware`, …) is left alone, and so is what only a registry can do.
"""

from layerfs.registry_config.document import InvalidConfiguration
from layerfs.registry_config.loading import RegistryConfig, load_registry_config

__all__ = ["InvalidConfiguration", "RegistryConfig", "load_registry_config"]
