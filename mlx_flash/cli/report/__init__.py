"""`check --report`: what this machine makes of the kernels, as one block of Markdown for the tracker."""
