"""A simulator of ksmd in virtual time: hours of a large host in seconds.

`ksmd` is the kernel's thread over the memory of guests (`memory`); `host` puts the product's ports around it, so that
the real cycle and any policy run on it unchanged; `driver` plays scenarios. Pages in the same state are one run
(`runs`), and a scan costs as many steps as there are runs. The costs of a page are measured (`costs`), the rules are
those of mm/ksm.c; tests/bench/test_sim_kernel.py compares with a real kernel, on real memory (`real_memory`).
"""
