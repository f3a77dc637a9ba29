// Renders SVG drawings to PNG. Reads one JSON job a line from standard input,
// {"icons": icons.json of an Iconify set, "icon": name, "out": PNG path, "size": pixels},
// and prints the number of each job when it is done. resvg aborts the whole process on a
// malformed drawing: the caller starts a new one after the job that was never reported.
import { readFileSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { createRequire } from 'node:module';

const { Resvg } = createRequire(`${process.argv[2]}/`)('@resvg/resvg-js');
const sets = new Map();

function svg(file, name) {
  if (!sets.has(file)) sets.set(file, JSON.parse(readFileSync(file, 'utf8')));
  const set = sets.get(file);
  const icon = set.icons[name];
  const box = ['left', 'top', 'width', 'height'].map((k) => icon[k] ?? set[k] ?? (k === 'left' || k === 'top' ? 0 : 16));
  return `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="${box.join(' ')}">${icon.body}</svg>`;
}

let number = 0;
for await (const line of createInterface({ input: process.stdin })) {
  const job = JSON.parse(line);
  const image = new Resvg(svg(job.icons, job.icon), { fitTo: { mode: 'width', value: job.size } }).render();
  writeFileSync(job.out, image.asPng());
  process.stdout.write(`${number++}\n`);
}
