(() => {
  const KEY = 'vsf-theme';
  const apply = (dark) => document.body.classList.toggle('dark', dark);
  const kept = () => { try { return localStorage.getItem(KEY) } catch { return null } };
  const write = (box, text) => {
    const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(box), 'value').set;
    set.call(box, text);
    box.dispatchEvent(new Event('input', {bubbles: true}));
  };
  const box = (name) => document.querySelector(`#${name} textarea, #${name} input`);
  const settle = () => { if (kept()) apply(kept() === 'dark') };
  document.addEventListener('DOMContentLoaded', () => { settle(); setTimeout(settle, 400); setTimeout(settle, 1500) });

  document.addEventListener('click', (event) => {
    const chip = event.target.closest('.chip');
    if (chip) {
      const where = document.querySelector('input[name=chip-target]:checked')?.value ?? 'negative';
      const field = box(where), word = chip.dataset.word, old = field.value.trim();
      const glue = where === 'negative' && old ? ', ' : ' ';
      write(field, old ? old + glue + word : word);
    }
    if (event.target.closest('#theme-switch')) {
      const dark = !document.body.classList.contains('dark');
      apply(dark);
      try { localStorage.setItem(KEY, dark ? 'dark' : 'light') } catch {}
    }
    if (event.target.closest('#draw') && innerWidth <= 860)
      document.querySelector('#stage').scrollIntoView({behavior: 'smooth'});
    const zoom = event.target.closest('.zoom');
    if (zoom) {
      const sheet = document.createElement('dialog');
      sheet.className = 'sheet';
      const image = zoom.querySelector('img').cloneNode(), close = document.createElement('button');
      close.type = 'button'; close.textContent = 'Close'; close.autofocus = true;
      sheet.append(image, close);
      sheet.addEventListener('click', () => sheet.close());
      sheet.addEventListener('close', () => { sheet.remove(); zoom.focus() });
      document.body.append(sheet);
      sheet.showModal();
    }
  });

  // Words go where the cursor last was.
  document.addEventListener('focusin', (event) => {
    for (const name of ['prompt', 'negative'])
      if (event.target.closest(`#${name}`)) {
        const radio = document.querySelector(`input[name=chip-target][value=${name}]`);
        if (radio) radio.checked = true;
      }
  });

  document.addEventListener('input', (event) => {
    const wipe = event.target.closest('.wipe');
    if (wipe) wipe.style.setProperty('--at', event.target.value + '%');
  });

  // gradio's radio buttons and tabs are no groups to the browser: arrow keys are ours.
  document.addEventListener('keydown', (event) => {
    const move = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key], from = event.target;
    const radio = from.type === 'radio' && from.name.startsWith('radio-'), tab = from.matches('#tabs [role=tab]');
    if (!move || (!radio && !tab)) return;
    const all = [...(radio ? from.closest('.wrap').querySelectorAll('input[type=radio]')
      : document.querySelectorAll('#tabs .tab-container:not(.visually-hidden) [role=tab]'))];
    const next = all[(all.indexOf(from) + move + all.length) % all.length];
    event.preventDefault();
    event.stopImmediatePropagation();
    next?.focus();
    next?.click();
  }, true);

  // Keys of the Label tab, unless somebody types.
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input, textarea, select, [role=tab]')) return;
    const key = {ArrowLeft: '1', ArrowDown: '2', ArrowRight: '3', U: 'u', Backspace: 'u'}[event.key] ?? event.key;
    const button = /^[123u]$/.test(key) ? document.querySelector(`#answer-${key}`) : null;
    if (button && button.offsetParent !== null && !button.disabled) { event.preventDefault(); button.click() }
  });
  // Who has given a name goes on with these keys.
  document.addEventListener('keyup', (event) => {
    if (event.key === 'Enter' && event.target.closest('#visitor')) event.target.blur();
  });
})();
