// SPDX-License-Identifier: Apache-2.0
// The tree of calls out of the page's data block; perfguest/writers/flamegraph.py says what is in it.
"use strict";

const ROOT = 0;
const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f8: Float64Array };

function decode([type, text]) {
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let at = 0; at < bytes.length; at++) {
        bytes[at] = binary.charCodeAt(at);
    }
    return new ARRAYS[type](bytes.buffer);
}

// The calls of all stacks. Nodes are numbers; each comes after its parent, and siblings follow one another.
class Tree {
    constructor(data) {
        const children = decode(data.children);
        this.size = children.length;
        this.names = data.names;
        this.modules = data.modules;
        [this.name, this.module, this.kind, this.unproven] = [data.labelName, data.labelModule, data.labelKind, data.labelUnproven].map(decode);
        this.label = decode(data.label);
        // Node i's children are first[i] up to first[i + 1].
        this.first = new Int32Array(this.size + 1);
        this.parent = new Int32Array(this.size).fill(-1);
        this.depth = new Int32Array(this.size);
        this.first[0] = 1;
        for (let node = 0; node < this.size; node++) {
            const end = this.first[node] + children[node];
            this.first[node + 1] = end;
            this.parent.fill(node, this.first[node], end);
            this.depth.fill(this.depth[node] + 1, this.first[node], end);
        }
        this.rows = this.depth[this.size - 1] + 1;
        this.total = new Float64Array(this.size);
        this.start = new Float64Array(this.size);
    }

    // Sets the weight of each node with all above it (total), and where it begins (start). `weights`: one of its own for each of the nodes that have one.
    measure(skip, weights) {
        const { total, start, parent, first, size } = this;
        total.fill(0);
        for (let at = 0, node = ROOT; at < skip.length; at++) {
            node += skip[at];
            total[node] = weights[at];
        }
        for (let node = size - 1; node > ROOT; node--) {
            total[parent[node]] += total[node];
        }
        for (let node = ROOT; node < size; node++) {
            for (let child = first[node], at = start[node]; child < first[node + 1]; child++) {
                start[child] = at;
                at += total[child];
            }
        }
    }

    // From the root on.
    pathTo(node) {
        const path = [];
        for (; node >= ROOT; node = this.parent[node]) {
            path.unshift(node);
        }
        return path;
    }

    children(node) {
        const found = [];
        for (let child = this.first[node]; child < this.first[node + 1]; child++) {
            found.push(child);
        }
        return found.filter((child) => this.total[child] > 0);
    }

    childAt(node, position) {
        let [low, high] = [this.first[node], this.first[node + 1]];
        while (high - low > 1) {
            const middle = (low + high) >> 1;
            [low, high] = this.start[middle] <= position ? [middle, high] : [low, middle];
        }
        return low < high && position >= this.start[low] && position < this.start[low] + this.total[low] ? low : -1;
    }

    isWithin(node, above) {
        while (node > above) {
            node = this.parent[node];
        }
        return node === above;
    }

    // Of the root's name there is no label.
    labelOf(node) {
        return node === ROOT ? -1 : this.label[node - 1];
    }

    nameOf(node) {
        return node === ROOT ? "all" : this.names[this.name[this.labelOf(node)]];
    }

    moduleOf(node) {
        return node === ROOT ? "" : this.modules[this.module[this.labelOf(node)]];
    }

    // Which labels have a name or module that matches, 1 for each.
    matches(pattern) {
        const [names, modules] = [this.names, this.modules].map((texts) => texts.map((text) => pattern.test(text)));
        return Uint8Array.from(this.name, (name, label) => names[name] || modules[this.module[label]]);
    }

    // The weight of all stacks on `above` in which a label matches; each counts once.
    matchedTotal(matched, above) {
        // What is on `above` without a match below it.
        const open = new Uint8Array(this.size);
        let sum = 0;
        for (let node = above; node < this.size; node++) {
            const inside = node === above || open[this.parent[node]] === 1;
            if (inside && node !== ROOT && matched[this.labelOf(node)]) {
                sum += this.total[node];
            } else if (inside) {
                open[node] = 1;
            }
        }
        return sum;
    }
}
