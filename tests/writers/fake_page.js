// SPDX-License-Identifier: Apache-2.0
// As much of a browser as the flame graph's page asks for. What would make HTML or script of a text is not there, or fails.
"use strict";

const LETTER = 7;
const drawn = [];
const frames = [];
const observers = [];
const clipboard = { text: null, isDenied: false };

class Context {
    constructor() {
        Object.assign(this, { fillStyle: "", strokeStyle: "", globalAlpha: 1, lineWidth: 1 });
    }
    record(what, ...rest) {
        drawn.push({ what, rest, fill: this.fillStyle, alpha: this.globalAlpha });
    }
    fillRect(...place) {
        this.record("rect", ...place);
    }
    strokeRect(...place) {
        this.record("outline", ...place);
    }
    fillText(text, x, y) {
        this.record("text", text, x, y);
    }
    measureText(text) {
        return { width: LETTER * text.length };
    }
    clip() {
        this.record("clip");
    }
    setTransform() {}
    setLineDash() {}
    save() {}
    restore() {}
    beginPath() {}
    rect() {}
}

class Element {
    constructor(tag, attributes = {}) {
        Object.assign(this, { tag, attributes, children: [], own: "", style: {}, listeners: {}, top: 0 });
        this.id = attributes.id;
        this.hidden = "hidden" in attributes;
        this.disabled = "disabled" in attributes;
        if (tag === "canvas") {
            this.context = new Context();
        }
    }
    get textContent() {
        return this.own + this.children.map((child) => child.textContent).join("");
    }
    set textContent(text) {
        if (typeof text !== "string") {
            throw new TypeError("text is no string");
        }
        this.children = [];
        this.own = text;
    }
    set innerHTML(_) {
        throw new Error("HTML out of text");
    }
    get value() {
        return this.written ?? (this.tag === "select" && this.children.length ? this.children[0].value : "");
    }
    set value(text) {
        this.written = text;
    }
    // Of the scrolled window over the graph: no farther than what is in it is high.
    get scrollTop() {
        return this.id !== "graph" ? this.top : Math.max(0, Math.min(this.top, parseFloat(document.getElementById("room").style.height) - this.clientHeight));
    }
    set scrollTop(top) {
        this.top = top;
        this.top = this.scrollTop;
    }
    append(...children) {
        this.children.push(...children);
    }
    setAttribute(name, value) {
        this.attributes[name] = value;
    }
    addEventListener(type, listener) {
        (this.listeners[type] ??= []).push(listener);
    }
    fire(type, event = {}) {
        (this.listeners[type] ?? []).forEach((listener) => listener(event));
    }
    focus() {
        document.activeElement = this;
    }
    select() {}
    getContext() {
        return this.context;
    }
}

const ids = {};
const document = {
    title: "",
    activeElement: null,
    documentElement: null,
    listeners: {},
    getElementById: (id) => ids[id] ?? null,
    createElement: (tag) => new Element(tag),
    addEventListener: Element.prototype.addEventListener,
    fire: Element.prototype.fire,
};

function build([tag, attributes, text, children]) {
    const made = new Element(tag, attributes);
    made.own = text;
    made.children = children.map(build);
    ids[made.id] = made;
    return made;
}

function atob(text) {
    const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const bytes = [];
    for (let at = 0, bits = 0, count = 0; at < text.length && text[at] !== "="; at++) {
        bits = ((bits << 6) | letters.indexOf(text[at])) & 0xffff;
        count += 6;
        if (count >= 8) {
            count -= 8;
            bytes.push(String.fromCharCode((bits >> count) & 0xff));
        }
    }
    return bytes.join("");
}

const scheme = new Element("media");
const matchMedia = () => scheme;
const getComputedStyle = () => ({ getPropertyValue: (name) => (name === "--match" ? " 300 85% 72%" : ` ${name.length} 50% 60%`) });
const requestAnimationFrame = (callback) => frames.push(callback);
const getSelection = () => ({ selectAllChildren: (element) => (document.selected = element.id) });
const navigator = {
    clipboard: {
        async writeText(text) {
            if (clipboard.isDenied) {
                throw new Error("denied");
            }
            clipboard.text = text;
        },
    },
};

class ResizeObserver {
    constructor(callback) {
        observers.push(callback);
    }
    observe() {}
}

Object.assign(globalThis, { innerWidth: 1000, innerHeight: 800, devicePixelRatio: 1 });

function open(tree, width, height) {
    document.documentElement = build(tree);
    Object.assign(ids.graph, { clientWidth: width, clientHeight: height });
}

// What is on the canvas after everything that waits to be drawn.
function picture() {
    drawn.length = 0;
    frames.splice(0).forEach((callback) => callback());
    return JSON.stringify(drawn);
}
