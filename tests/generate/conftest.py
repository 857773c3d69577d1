"""Property tests here have no deadline: a loaded machine is no reason to fail."""

from hypothesis import settings

settings.register_profile("generate", deadline=None)
settings.load_profile("generate")
