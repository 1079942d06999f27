/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef PERFGUEST_CONTROL_H
#define PERFGUEST_CONTROL_H

struct dentry;

void pg_control_init(struct dentry *dir);

/* The last reader has gone, killed perhaps: nobody is there to be sampled for. */
void pg_control_no_readers(void);

#endif
