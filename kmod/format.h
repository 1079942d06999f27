/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef PERFGUEST_FORMAT_H
#define PERFGUEST_FORMAT_H

struct dentry;

void pg_format_init(struct dentry *dir);

#endif
