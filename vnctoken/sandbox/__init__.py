"""A cloud to try things on: what the demo and the tests run instead of OpenNebula. The service never imports it."""
