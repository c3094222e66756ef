// The settings of a picture, read where the picture is: its PNG chunks are walked, nothing is decoded or sent but their text.
const LONGEST = 32768, DEEP = 65536;
const words = (bytes) => { let text = ''; for (const byte of bytes) text += String.fromCharCode(byte); return text };

const inflate = async (bytes) => {
  const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate')).getReader();
  const parts = [];
  let size = 0;
  for (let part; size <= 4 * LONGEST && !(part = await reader.read()).done;) { parts.push(part.value); size += part.value.length }
  reader.cancel();
  return new Uint8Array(await new Blob(parts).arrayBuffer());
};

const ours = async (kind, data) => {
  const end = data.indexOf(0);
  if (words(data.subarray(0, Math.max(end, 0))) !== 'vsf') return null;
  let rest = data.subarray(end + 1), packed = kind === 'zTXt';
  if (packed) rest = rest.subarray(1);
  if (kind === 'iTXt') {
    packed = rest[0] === 1;
    rest = rest.subarray(2);
    for (let i = 0; i < 2; i++) rest = rest.subarray(rest.indexOf(0) + 1);
  }
  if (packed) rest = await inflate(rest);
  return kind === 'iTXt' ? new TextDecoder().decode(rest) : words(rest);
};

const read = async (file) => {
  const at = async (from, size) => new Uint8Array(await file.slice(from, from + size).arrayBuffer());
  if (words(await at(0, 8)) !== '\x89PNG\r\n\x1a\n') return {fault: 'kind'};
  let text = null;
  for (let here = 8, i = 0; i < DEEP; i++) {
    const head = await at(here, 8);
    if (head.length < 8) break;
    const size = new DataView(head.buffer).getUint32(0), kind = words(head.subarray(4));
    if (text === null && /^(tEXt|zTXt|iTXt)$/.test(kind)) {
      if (size > 4 * LONGEST) return {fault: 'long'};
      text = await ours(kind, await at(here + 8, size));
    }
    if (kind === 'IEND') return text === null ? {fault: 'none'} : text.length > LONGEST ? {fault: 'long'} : {text};
    here += size + 12;
  }
  return {fault: 'damaged'};
};

const take = async (file) => {
  if (!file) return;
  const found = await read(file).catch(() => ({fault: 'damaged'}));
  trigger('upload', {name: file.name.slice(0, 200), ...found});
};

element.addEventListener('change', (event) => { take(event.target.files[0]); event.target.value = '' });
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop'])
  element.addEventListener(kind, (event) => {
    event.preventDefault();
    element.firstElementChild?.classList.toggle('over', kind.endsWith('r') && kind !== 'dragleave');
    if (kind === 'drop') take(event.dataTransfer.files[0]);
  });
