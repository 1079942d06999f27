// SPDX-License-Identifier: Apache-2.0
// What the page says and does around the drawing. Names are hostile: they reach the page by textContent alone, never as HTML.
"use strict";

function withThousands(number) {
    return String(number).replace(/\B(?=(\d{3})+$)/g, ",");
}

function asTime(nanoseconds) {
    const [unit, scale] = [["s", 1e9], ["ms", 1e6], ["\u00b5s", 1e3]].find(([, least]) => nanoseconds >= least) ?? ["ns", 1];
    return `${Number((nanoseconds / scale).toPrecision(4))} ${unit}`;
}

function asPercent(part, whole) {
    return `${((part / whole) * 100).toFixed(part < whole / 10 ? 2 : 1)}%`;
}

function newElement(tag, text, ...classes) {
    const made = document.createElement(tag);
    made.textContent = text;
    made.className = classes.join(" ");
    return made;
}

const asClass = (kind) => kind.toLowerCase().replace(" ", "-");

class Page {
    constructor(data) {
        this.data = data;
        this.tree = new Tree(data);
        this.view = new View(this.tree, data.kinds.map(asClass));
        this.fillHeader();
        this.fillLegend();
        this.fillMeasures();
        this.listenToTools();
        this.listenToGraph();
        this.measure();
        this.select(-1);
        this.view.scrollToRoots();
    }

    fillHeader() {
        const { host, started, seconds, events, notes } = this.data;
        const begin = new Date(started === null ? NaN : started * 1000);
        const counts = events.map((event) => `${withThousands(decode(event.samples).reduce((sum, one) => sum + one, 0))} samples of ${event.name}`);
        const when = Number.isNaN(begin.getTime()) ? "" : `${begin.toISOString().slice(0, 19).replace("T", " ")} UTC`;
        const span = events.length ? `over ${asTime(seconds * 1e9)}` : "No samples";
        element("title").textContent = host ? `KVM guests on ${host}` : "KVM guests";
        element("about").textContent = [counts.join(", "), span, when].filter(Boolean).join(" \u00b7 ");
        document.title = `${element("title").textContent} \u2013 flame graph`;
        const [summary, list] = element("notes").children;
        summary.textContent = `${notes.length} ${notes.length === 1 ? "note" : "notes"} on this recording`;
        list.append(...notes.map((note) => newElement("li", note)));
        element("notes").hidden = !notes.length;
    }

    fillLegend() {
        const { kinds } = this.data;
        const present = new Set(this.tree.kind);
        const entry = (text, ...classes) => {
            const made = newElement("li", "");
            made.append(newElement("i", "", ...classes), newElement("span", text));
            return made;
        };
        const entries = kinds.map((kind, number) => [kind, number]).filter(([, number]) => number && present.has(number));
        element("legend").append(...entries.map(([kind]) => entry(kind, asClass(kind))));
        if (this.tree.unproven.includes(1)) {
            element("legend").append(entry("? only looks like a caller", "unproven"));
        }
        this.matchEntry = entry("found", "match");
        this.matchEntry.hidden = true;
        element("legend").append(this.matchEntry);
    }

    // One choice for each event's samples, and one for its periods.
    fillMeasures() {
        this.measures = this.data.events.flatMap((event) => [
            { event, column: "samples", text: `samples of ${event.name}`, show: (value) => `${withThousands(value)} ${value === 1 ? "sample" : "samples"}` },
            event.clock
                ? { event, column: "period", text: `CPU time by ${event.name}`, show: asTime }
                : { event, column: "period", text: `${event.name}, estimated`, show: (value) => `${withThousands(value)} ${event.name}` },
        ]);
        const options = this.measures.map(({ text }, number) => {
            const option = newElement("option", text);
            option.value = String(number);
            return option;
        });
        element("measure").append(...options);
        element("measure").disabled = !options.length;
    }

    measure() {
        const measure = this.measures[Number(element("measure").value)];
        if (measure) {
            this.show = measure.show;
            this.tree.measure(decode(measure.event.skip), decode(measure.event[measure.column]));
        }
        const { total } = this.tree;
        this.zoom(total[this.view.zoomed] > 0 ? this.view.zoomed : ROOT);
        this.select(total[this.view.selected] > 0 ? this.view.selected : -1);
    }

    listenToTools() {
        element("measure").addEventListener("change", () => this.measure());
        element("search").addEventListener("input", () => this.search());
        element("reset").addEventListener("click", () => this.zoom(ROOT));
        element("turn").addEventListener("click", () => this.turn());
        element("copy").addEventListener("click", () => this.copy());
        document.addEventListener("keydown", (event) => this.onKey(event));
        matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.view.recolour());
    }

    listenToGraph() {
        const canvas = element("canvas");
        canvas.addEventListener("mousemove", (event) => this.hover(this.view.frameAt(event.offsetX, event.offsetY), event));
        canvas.addEventListener("mouseleave", () => this.hover(-1));
        canvas.addEventListener("click", (event) => this.choose(this.view.frameAt(event.offsetX, event.offsetY)));
        canvas.addEventListener("keydown", (event) => this.onGraphKey(event));
        element("graph").addEventListener("scroll", () => {
            this.hover(-1);
            this.view.redraw();
        });
        new ResizeObserver(() => this.view.draw()).observe(element("graph"));
    }

    zoom(node) {
        this.view.zoomed = node;
        element("reset").disabled = node === ROOT;
        this.hover(-1);
        this.tellMatched();
        this.view.redraw();
    }

    choose(node) {
        if (node >= ROOT) {
            this.zoom(node);
            this.select(node);
        }
    }

    turn() {
        this.view.icicle = !this.view.icicle;
        element("turn").setAttribute("aria-pressed", String(this.view.icicle));
        this.view.scrollToRoots();
        this.view.redraw();
    }

    // Name, and what is to be said of a frame.
    facts(node) {
        const { tree } = this;
        const [parent, module, label] = [tree.parent[node], tree.moduleOf(node), tree.labelOf(node)];
        const kind = label < 0 ? "" : this.data.kinds[tree.kind[label]];
        const unproven = label >= 0 && tree.unproven[label] ? "only looks like a caller" : "";
        const parts = [this.show(tree.total[node]), `${asPercent(tree.total[node], tree.total[ROOT])} of all`];
        if (parent > ROOT) {
            parts.push(`${asPercent(tree.total[node], tree.total[parent])} of its caller`);
        }
        const own = tree.children(node).reduce((rest, child) => rest - tree.total[child], tree.total[node]);
        if (own > 0) {
            parts.push(`${this.show(own)} in itself`);
        }
        return [tree.nameOf(node), [kind === "other" ? "" : kind, module, unproven, parts.join(", ")].filter(Boolean).join(" \u00b7 ")];
    }

    hover(node, event) {
        const tip = element("tip");
        tip.hidden = node < ROOT;
        if (tip.hidden) {
            return;
        }
        const [name, facts] = tip.children;
        [name.textContent, facts.textContent] = this.facts(node);
        const isRight = event.clientX > globalThis.innerWidth / 2;
        const isLow = event.clientY > globalThis.innerHeight / 2;
        tip.style.left = isRight ? "auto" : `${event.clientX + 14}px`;
        tip.style.right = isRight ? `${globalThis.innerWidth - event.clientX + 10}px` : "auto";
        tip.style.top = isLow ? "auto" : `${event.clientY + 16}px`;
        tip.style.bottom = isLow ? `${globalThis.innerHeight - event.clientY + 12}px` : "auto";
    }

    select(node) {
        this.view.selected = node;
        const none = ["", this.measures.length ? "Click a frame to zoom; Esc goes back. Arrow keys move from frame to frame, / searches." : "This recording has no samples."];
        [element("name").textContent, element("facts").textContent] = node < ROOT ? none : this.facts(node);
        const path = node < ROOT ? [] : this.tree.pathTo(node).slice(1);
        element("stack").textContent = path.map((one) => this.line(one)).join("\n");
        element("stack").hidden = element("copy").hidden = !path.length;
        element("stack").scrollTop = path.length * ROW;
        element("copy").textContent = "Copy stack";
        this.view.redraw();
    }

    line(node) {
        const module = this.tree.moduleOf(node);
        return module ? `${this.tree.nameOf(node)} (${module})` : this.tree.nameOf(node);
    }

    async copy() {
        const stack = element("stack");
        try {
            await navigator.clipboard.writeText(stack.textContent);
            element("copy").textContent = "Copied";
        } catch {
            // Some browsers give pages from files no clipboard.
            getSelection().selectAllChildren(stack);
            element("copy").textContent = "Selected: press Ctrl-C";
        }
    }

    search() {
        const box = element("search");
        let pattern = null;
        try {
            pattern = box.value ? new RegExp(box.value, "i") : null;
            box.setAttribute("aria-invalid", "false");
        } catch (error) {
            box.setAttribute("aria-invalid", "true");
            element("matched").textContent = error.message;
            return;
        }
        this.view.matched = pattern && this.tree.matches(pattern);
        this.matchEntry.hidden = !pattern;
        this.tellMatched();
        this.view.redraw();
    }

    tellMatched() {
        const { matched, zoomed } = this.view;
        const whole = this.tree.total[zoomed];
        if (matched === null || !(whole > 0)) {
            element("matched").textContent = "";
            return;
        }
        const found = this.tree.matchedTotal(matched, zoomed);
        element("matched").textContent = `${asPercent(found, whole)} found${zoomed === ROOT ? "" : " in the zoomed frame"}, ${this.show(found)}`;
    }

    onKey(event) {
        const [box, isFind] = [element("search"), event.key === "f" && (event.ctrlKey || event.metaKey)];
        const isSlash = event.key === "/" && !event.ctrlKey && !event.metaKey;
        // A second Ctrl-F is the browser's own.
        if ((isFind || isSlash) && document.activeElement !== box) {
            event.preventDefault();
            box.focus();
            box.select();
        } else if (event.key === "Escape") {
            this.onEscape(box);
        }
    }

    onEscape(box) {
        if (document.activeElement === box && box.value) {
            box.value = "";
            this.search();
        } else {
            this.zoom(ROOT);
        }
    }

    onGraphKey(event) {
        const { tree, view } = this;
        const [node, up] = [view.selected, view.icicle ? "ArrowUp" : "ArrowDown"];
        const goal = {
            [up]: () => tree.parent[node],
            [view.icicle ? "ArrowDown" : "ArrowUp"]: () => this.widest(tree.children(node)),
            ArrowLeft: () => this.beside(node, -1),
            ArrowRight: () => this.beside(node, 1),
            Home: () => ROOT,
            Enter: () => node,
        }[event.key];
        if (!goal || event.ctrlKey || event.metaKey || event.altKey || !(tree.total[ROOT] > 0)) {
            return;
        }
        event.preventDefault();
        const next = node < ROOT ? view.zoomed : goal();
        if (next < ROOT || next === undefined) {
            return;
        }
        if (event.key === "Enter" || !(tree.isWithin(next, view.zoomed) || tree.isWithin(view.zoomed, next))) {
            this.zoom(event.key === "Enter" ? next : tree.parent[next]);
        }
        this.hover(-1);
        this.select(next);
        view.scrollTo(tree.depth[next]);
    }

    widest(nodes) {
        return nodes.reduce((best, node) => (best < 0 || this.tree.total[node] > this.tree.total[best] ? node : best), -1);
    }

    beside(node, step) {
        const siblings = node === ROOT ? [] : this.tree.children(this.tree.parent[node]);
        return siblings[siblings.indexOf(node) + step] ?? -1;
    }
}

try {
    new Page(JSON.parse(element("data").textContent));
} catch (error) {
    element("facts").textContent = `The flame graph cannot be drawn: ${error.message}`;
    throw error;
}
