// SPDX-License-Identifier: Apache-2.0
// Draws the tree on a canvas. Names are hostile: they come here by fillText alone.
"use strict";

const ROW = 18;
// What is narrower than so many pixels is drawn together with its neighbours, and what stands on it is not.
const NARROW = 1;
const FONT = '12px ui-monospace, "Liberation Mono", "DejaVu Sans Mono", Menlo, Consolas, monospace';
const PADDING = 4;
const SHADES = 5;

const element = (id) => document.getElementById(id);
const isAscii = (text) => /^[ -~]*$/.test(text);

// The colours of each kind of frame, in shades so that neighbours differ, out of the style's.
function readColours(kinds) {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => style.getPropertyValue(`--${name}`).trim();
    const shades = (name) => {
        const [hue, saturation, lightness] = value(name).split(/[\s%]+/).map(Number);
        const shade = (number) => `hsl(${hue + (number - 2) * 2}, ${saturation}%, ${lightness + (number - 2) * 1.7}%)`;
        return Array.from({ length: SHADES }, (_, number) => shade(number));
    };
    return {
        kinds: kinds.map((kind) => shades(kind)),
        match: shades("match"),
        ...Object.fromEntries(["ground", "frame-text", "selected", "run"].map((name) => [name, value(name)])),
    };
}

// What is seen of the tree: which frame fills the width (zoomed), which is selected, what matches a search. Draws it, and finds frames at places.
class View {
    constructor(tree, kinds) {
        this.tree = tree;
        this.kinds = kinds;
        this.canvas = element("canvas");
        this.context = this.canvas.getContext("2d");
        this.zoomed = ROOT;
        this.selected = -1;
        this.matched = null;
        this.icicle = false;
        this.waiting = false;
        // How far the window over the graph is from the graph's lower end.
        this.fromEnd = 0;
        this.recolour();
    }

    recolour() {
        this.colours = readColours(this.kinds);
        this.redraw();
    }

    redraw() {
        if (!this.waiting) {
            this.waiting = true;
            requestAnimationFrame(() => {
                this.waiting = false;
                this.draw();
            });
        }
    }

    // The canvas is as high as its window, which scrolls over the graph's whole height: canvases of any height do not exist.
    fit() {
        const [graph, ratio] = [element("graph"), globalThis.devicePixelRatio || 1];
        element("room").style.height = `${Math.max(this.tree.rows * ROW, graph.clientHeight)}px`;
        const isResized = this.height !== graph.clientHeight;
        [this.width, this.height] = [graph.clientWidth, graph.clientHeight];
        const end = this.wholeHeight() - this.height;
        // Roots at the bottom stay where they are.
        if (isResized && !this.icicle) {
            graph.scrollTop = end - this.fromEnd;
        }
        this.fromEnd = end - graph.scrollTop;
        const [width, height] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
        if (this.canvas.width !== width || this.canvas.height !== height) {
            [this.canvas.width, this.canvas.height] = [width, height];
            [this.canvas.style.width, this.canvas.style.height] = [`${this.width}px`, `${this.height}px`];
        }
        this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    }

    wholeHeight() {
        return Math.max(this.tree.rows * ROW, this.height);
    }

    top(depth) {
        return (this.icicle ? depth * ROW : this.wholeHeight() - (depth + 1) * ROW) - element("graph").scrollTop;
    }

    draw() {
        this.fit();
        const { context, tree, colours } = this;
        context.fillStyle = colours.ground;
        context.fillRect(0, 0, this.width, this.height);
        context.font = FONT;
        context.textBaseline = "middle";
        this.letter = context.measureText("m").width;
        if (!(tree.total[ROOT] > 0)) {
            return;
        }
        for (const node of tree.pathTo(this.zoomed).slice(0, -1)) {
            this.drawFrame(node, 0, this.width, true);
        }
        this.drawAbove();
    }

    drawAbove() {
        const { tree } = this;
        const [scale, origin] = [this.width / tree.total[this.zoomed], tree.start[this.zoomed]];
        const todo = [this.zoomed];
        while (todo.length) {
            const node = todo.pop();
            this.drawFrame(node, (tree.start[node] - origin) * scale, tree.total[node] * scale, false);
            const next = this.top(tree.depth[node] + 1);
            if (this.icicle ? next > this.height : next < -ROW) {
                continue;
            }
            let begin = -1;
            for (let child = tree.first[node]; child < tree.first[node + 1]; child++) {
                const wide = tree.total[child] * scale >= NARROW;
                const x = (tree.start[child] - origin) * scale;
                if (wide) {
                    todo.push(child);
                    this.drawRun(begin, x, next);
                    begin = -1;
                } else if (begin < 0) {
                    begin = x;
                }
                if (!wide && child + 1 === tree.first[node + 1]) {
                    this.drawRun(begin, x + tree.total[child] * scale, next);
                }
            }
        }
    }

    // Siblings too narrow to be seen, from `begin` (-1 for none) to `end`.
    drawRun(begin, end, y) {
        if (begin >= 0 && end - begin >= NARROW / 2) {
            this.context.fillStyle = this.colours.run;
            this.context.fillRect(begin, y, end - begin, ROW - 1);
        }
    }

    drawFrame(node, x, width, isBelowZoom) {
        const y = this.top(this.tree.depth[node]);
        if (y <= -ROW || y >= this.height) {
            return;
        }
        const { context, tree, colours } = this;
        const label = tree.labelOf(node);
        const isMatch = this.matched !== null && label >= 0 && this.matched[label] === 1;
        const shades = isMatch ? colours.match : colours.kinds[label < 0 ? 0 : tree.kind[label]];
        const seen = width > 3 ? width - 1 : width;
        context.globalAlpha = isBelowZoom || (this.matched !== null && !isMatch) ? 0.45 : 1;
        context.fillStyle = shades[label < 0 ? 2 : (tree.name[label] * 7) % SHADES];
        if (label >= 0 && tree.unproven[label]) {
            this.drawHollow(x, y, seen);
        } else {
            context.fillRect(x, y, seen, ROW - 1);
        }
        context.globalAlpha = Math.max(context.globalAlpha, 0.7);
        this.drawName(tree.nameOf(node), x, y, seen);
        context.globalAlpha = 1;
        if (node === this.selected) {
            context.strokeStyle = colours.selected;
            context.lineWidth = 2;
            context.strokeRect(x + 1, y + 1, Math.max(seen - 2, 1), ROW - 3);
        }
    }

    // Of a frame that only looks like a caller.
    drawHollow(x, y, width) {
        const { context } = this;
        context.strokeStyle = context.fillStyle;
        context.lineWidth = 1;
        context.setLineDash([3, 2]);
        context.strokeRect(x + 0.5, y + 0.5, Math.max(width - 1, 0.5), ROW - 2);
        context.setLineDash([]);
        context.globalAlpha *= 0.35;
        context.fillRect(x, y, width, ROW - 1);
        context.globalAlpha /= 0.35;
    }

    drawName(name, x, y, width) {
        const { context } = this;
        const room = Math.floor((width - 2 * PADDING) / this.letter);
        if (room < 3) {
            return;
        }
        const letters = Array.from(name.slice(0, 2 * room + 2));
        const text = letters.length > room ? `${letters.slice(0, room - 1).join("")}\u2026` : name;
        context.fillStyle = this.colours["frame-text"];
        if (isAscii(name)) {
            context.fillText(text, x + PADDING, y + ROW / 2);
            return;
        }
        // Marks pile up on letters, and letters are of any width: such a name stays within its frame.
        context.save();
        context.beginPath();
        context.rect(x, y, width, ROW - 1);
        context.clip();
        context.fillText(text, x + PADDING, y + ROW / 2, width - 2 * PADDING);
        context.restore();
    }

    // The frame at a place of the canvas, or -1.
    frameAt(x, y) {
        const { tree } = this;
        const fromRoot = y + element("graph").scrollTop;
        const depth = Math.floor((this.icicle ? fromRoot : this.wholeHeight() - fromRoot) / ROW);
        if (!(tree.total[this.zoomed] > 0) || depth < 0 || x < 0 || x >= this.width) {
            return -1;
        }
        const path = tree.pathTo(this.zoomed);
        if (depth < path.length) {
            return path[depth];
        }
        const scale = this.width / tree.total[this.zoomed];
        const position = tree.start[this.zoomed] + x / scale;
        let node = this.zoomed;
        while (node >= ROOT && tree.depth[node] < depth) {
            node = tree.total[node] * scale < NARROW ? -1 : tree.childAt(node, position);
        }
        return node;
    }

    scrollTo(depth) {
        const y = this.top(depth);
        if (y < 0 || y > this.height - ROW) {
            element("graph").scrollTop += y < 0 ? y : y - this.height + ROW;
        }
    }

    scrollToRoots() {
        this.fit();
        element("graph").scrollTop = this.icicle ? 0 : this.wholeHeight();
    }
}
