"""A cloud to try things on, run instead of OpenNebula by the demo and the tests. The service never imports it."""
