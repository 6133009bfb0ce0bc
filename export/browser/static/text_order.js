// Turns a line from the order in which an image shows it into the order in which it is read, as
// mdlstm_tk/_util/text_order.py does. JavaScript does not know the bidirectional classes of characters: the
// page holds those of the alphabet.
const OPEN = "([{<«‹≤", CLOSE = ")]}>»›≥";
const STRONG = { L: "L", R: "R", AL: "R" };
const SIDES = { L: "L", R: "R", EN: "R", AN: "R" };

// characters: those of the line; kinds: the bidirectional class of each; direction: "ltr" or "rtl".
export function reorder(characters, kinds, direction) {
  const clusters = []; // characters with their accents, and the class of each
  characters.forEach((character, k) => {
    if (clusters.length && /^\p{M}/u.test(character)) clusters.at(-1).text += character;
    else clusters.push({ text: character, kind: kinds[k] });
  });
  levels(clusters, direction);
  for (const cluster of clusters) if (cluster.level % 2) cluster.text = [...cluster.text].map(mirrored).join("");
  for (let level = clusters.reduce((a, c) => Math.max(a, c.level), 0); level > 0; level--) {
    for (let start = 0, end; start < clusters.length; start = end + 1) {
      for (end = start; end < clusters.length && clusters[end].level >= level; end++);
      clusters.splice(start, end - start, ...clusters.slice(start, end).reverse());
    }
  }
  return clusters.map((cluster) => cluster.text).join("");
}

function mirrored(character) {
  const [open, close] = [OPEN.indexOf(character), CLOSE.indexOf(character)];
  return open >= 0 ? CLOSE[open] : close >= 0 ? OPEN[close] : character;
}

// Sets the embedding level of each cluster: odd ones run from right to left. W2, … are rules of UAX 9.
function levels(clusters, direction) {
  const base = direction === "rtl" ? "R" : "L";
  let last = base;
  for (const cluster of clusters) { // W2, W3
    if (cluster.kind in STRONG) last = cluster.kind;
    else if (cluster.kind === "EN" && last === "AL") cluster.kind = "AN";
  }
  clusters.forEach((cluster, k) => { // W4: one separator between two numbers of the same kind
    const around = [clusters[k - 1]?.kind, clusters[k + 1]?.kind].join();
    if (around === "EN,EN" && ["ES", "CS"].includes(cluster.kind)) cluster.kind = "EN";
    else if (around === "AN,AN" && cluster.kind === "CS") cluster.kind = "AN";
  });
  for (const order of [clusters, [...clusters].reverse()]) { // W5: signs such as % and €
    let previous = "";
    for (const cluster of order) {
      if (cluster.kind === "ET" && previous === "EN") cluster.kind = "EN";
      previous = cluster.kind;
    }
  }
  last = base;
  for (const cluster of clusters) { // W7
    last = STRONG[cluster.kind] ?? last;
    cluster.kind = cluster.kind === "EN" && last === "L" ? "L" : STRONG[cluster.kind] ?? cluster.kind;
  }
  let after = base; // N1, N2: spaces and punctuation take the direction on both of their sides
  for (const cluster of [...clusters].reverse()) cluster.after = after = SIDES[cluster.kind] ?? after;
  let before = base;
  for (const cluster of clusters) {
    if (cluster.kind in SIDES) before = SIDES[cluster.kind];
    else cluster.kind = before === cluster.after ? before : base;
    cluster.level = { L: base === "R" ? 2 : 0, R: 1 }[cluster.kind] ?? 2;
  }
}
