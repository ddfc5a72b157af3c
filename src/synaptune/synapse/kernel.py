from synaptune.synapse.terminal import terminal_scan as fast_scan
