"""A simulator of ksmd in virtual time: what no machine here can hold, and what would take a day, in seconds.

`ksmd` is the kernel's thread over the memory of guests (`memory`); `host` puts the product's ports around it, so that
the real cycle and any policy run against it unchanged; `driver` plays scenarios; `validate` compares it with the real
kernel. Pages are never held one by one: pages in the same state are one run (`runs`), and a scan costs as many steps
as there are runs. The costs of a page are measured (`costs`), the rules are those of mm/ksm.c.
"""
