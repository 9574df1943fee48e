/*
 * The chat page of `bayan serve`. It asks /v1/chat/completions on its own origin. All text of messages becomes text
 * nodes, never HTML. Conversations are kept in localStorage, one entry each; the key stays in sessionStorage.
 */
import { STRINGS } from './strings.js';
import { direction, element, render as renderText } from './text.js';

const PREFIX = 'bayan.conversation.';
const $ = (id) => document.getElementById(id);
const read = (store, name) => {
  try {
    return store.getItem(name);
  } catch {
    return null;
  }
};
const write = (store, name, value) => {
  try {
    value ? store.setItem(name, value) : store.removeItem(name);
    return true;
  } catch {
    return false;
  }
};

let language = read(localStorage, 'bayan.language') === 'en' ? 'en' : 'ar';
let conversation = fresh();
/** The request that runs, if any. */
let running = null;
const t = (name) => STRINGS[language][name];
const side = () => (language === 'ar' ? 'rtl' : 'ltr');
const render = (body, text) => renderText(body, text, side());

function fresh() {
  return { id: `${Date.now()}-${Math.random().toString(36).slice(2, 8)}`, at: Date.now(), messages: [] };
}

/* ---- What is on the screen ---- */

function notice(text) {
  $('notice').textContent = text;
  $('notice').hidden = !text;
}

const atEnd = () => $('log').scrollHeight - $('log').scrollTop - $('log').clientHeight < 60;
const toEnd = () => {
  $('log').scrollTop = $('log').scrollHeight;
};

function tool(name, act) {
  const button = element('button', '', t(name));
  button.type = 'button';
  button.addEventListener('click', () => act(button));
  return button;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = t('copied');
    setTimeout(() => {
      button.textContent = t('copy');
    }, 1500);
  } catch {
    notice(t('noCopy'));
  }
}

function turn(message, last) {
  const body = element('div', 'body');
  render(body, message.content);
  const article = element('article', `turn ${message.role === 'user' ? 'user' : 'answer'}`, body);
  article.setAttribute('aria-label', t(message.role === 'user' ? 'you' : 'answer'));
  if (message.end) article.append(element('p', 'note', t(message.end)));
  const tools = element(
    'div',
    'tools',
    tool('copy', (button) => copy(message.content, button)),
  );
  if (last) tools.append(tool(message.role === 'user' ? 'retry' : 'again', again));
  article.append(tools);
  return article;
}

function show() {
  const { messages } = conversation;
  const turns = messages.map((message, index) => turn(message, index === messages.length - 1));
  $('log').replaceChildren(...(turns.length ? turns : [element('p', 'welcome', t('welcome'))]));
  toEnd();
}

function title({ messages }) {
  return (messages.find((message) => message.role === 'user')?.content ?? t('fresh')).replace(/\s+/g, ' ').slice(0, 60);
}

function showList() {
  const items = stored().map((each) => {
    const open = element('button', 'title', title(each));
    open.dir = direction(title(each), side());
    open.addEventListener('click', () => {
      leave();
      conversation = each;
      show();
      showList();
      closeMenu();
    });
    const remove = element('button', 'plain', '×');
    remove.setAttribute('aria-label', `${t('remove')}: ${title(each)}`);
    remove.addEventListener('click', () => {
      if (!confirm(t('removeAsk'))) return;
      write(localStorage, PREFIX + each.id, '');
      if (each.id === conversation.id) {
        conversation.removed = true;
        leave();
        conversation = fresh();
        show();
      }
      showList();
    });
    const item = element('li', each.id === conversation.id ? 'open' : '', open, remove);
    if (each.id === conversation.id) open.setAttribute('aria-current', 'true');
    return item;
  });
  $('list').replaceChildren(...items);
}

/** All conversations, the newest first; entries that are not ours or broken are passed over. */
function stored() {
  const found = [];
  try {
    for (let at = 0; at < localStorage.length; at++) {
      const name = localStorage.key(at);
      if (!name?.startsWith(PREFIX)) continue;
      try {
        const each = JSON.parse(localStorage.getItem(name));
        const good = (m) => ['user', 'assistant'].includes(m?.role) && typeof m.content === 'string';
        if (typeof each?.id === 'string' && Array.isArray(each.messages) && each.messages.every(good)) found.push(each);
      } catch {
        /* Not ours. */
      }
    }
  } catch {
    /* The browser keeps nothing. */
  }
  return found.sort((a, b) => (b.at || 0) - (a.at || 0));
}

function keep(which = conversation) {
  if (which.removed) return;
  which.at = Date.now();
  if (!write(localStorage, PREFIX + which.id, JSON.stringify(which))) notice(t('full'));
}

/* ---- Asking ---- */

function headers() {
  const key = read(sessionStorage, 'bayan.key');
  return { 'content-type': 'application/json', ...(key ? { authorization: `Bearer ${key}` } : {}) };
}

/** The error of an answer, in the reader's language where the page knows it. */
async function failure(response) {
  if (response.status === 401) {
    $('panel').showModal();
    $('key').focus();
    return t('needsKey');
  }
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `HTTP ${response.status}`;
}

/** The events of a stream. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? '')).split('\n');
    rest = done ? '' : lines.pop();
    for (const line of lines) if (line.startsWith('data: ')) yield line.slice(6).trim();
    if (done) return;
  }
}

async function ask() {
  const own = conversation;
  const system = read(localStorage, 'bayan.system')?.trim();
  const messages = own.messages.map(({ role, content }) => ({ role, content }));
  if (system) messages.unshift({ role: 'system', content: system });
  const abort = new AbortController();
  running = abort;
  buttons();
  notice('');
  const reply = { role: 'assistant', content: '' };
  const article = turn(reply, false);
  article.classList.add('running');
  article.setAttribute('aria-busy', 'true');
  $('log').append(article);
  toEnd();
  let waiting = false;
  const paint = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const follow = atEnd();
      render(article.firstChild, reply.content);
      if (follow) toEnd();
    });
  };
  let problem = '';
  try {
    const response = await fetch('v1/chat/completions', {
      method: 'POST',
      headers: headers(),
      body: JSON.stringify({ model: $('model').value || undefined, messages, stream: true }),
      signal: abort.signal,
    });
    if (!response.ok) problem = await failure(response);
    else {
      let ended = false;
      for await (const data of events(response)) {
        if (data === '[DONE]') {
          ended = true;
          continue;
        }
        const event = JSON.parse(data);
        if (event.error) {
          problem = event.error.message;
          ended = true;
          break;
        }
        const choice = event.choices?.[0];
        if (choice?.delta?.content) {
          reply.content += choice.delta.content;
          paint();
        }
        if (choice?.finish_reason === 'length') reply.end = 'cut';
      }
      if (!ended) problem = t('broken');
    }
  } catch (error) {
    if (abort.signal.aborted) reply.end = 'stopped';
    else problem = reply.content ? t('broken') : t('offline');
  }
  if (running === abort) running = null;
  buttons();
  if (problem) {
    reply.end = reply.content ? 'broken' : undefined;
    notice(problem);
  } else if (!reply.content && !reply.end) notice(t('empty'));
  if (reply.content) own.messages.push(reply);
  if (reply.content || own.messages.length > 0) keep(own);
  // The reader may have gone to another conversation.
  if (own === conversation) show();
  showList();
}

/** Stops the answer of the conversation that is left. */
function leave() {
  running?.abort();
}

function again() {
  if (running) return;
  while (conversation.messages.at(-1)?.role === 'assistant') conversation.messages.pop();
  show();
  ask();
}

function buttons() {
  $('send').hidden = running !== null;
  $('stop').hidden = running === null;
}

function submit() {
  const text = $('text').value.trim();
  if (!text || running) return;
  // Templates want turns that alternate: text after a message without an answer belongs to that message.
  const last = conversation.messages.at(-1);
  if (last?.role === 'user') last.content += `\n\n${text}`;
  else conversation.messages.push({ role: 'user', content: text });
  $('text').value = '';
  grow();
  keep();
  show();
  showList();
  ask();
}

/** A field's direction is that of its text; an empty one has that of the page, as its hint. */
function turnField(field) {
  field.dir = direction(field.value, side());
}

function grow() {
  turnField($('text'));
  $('text').style.height = 'auto';
  $('text').style.height = `${$('text').scrollHeight + 2}px`;
}

async function models() {
  try {
    const response = await fetch('v1/models', { headers: headers() });
    if (!response.ok) return notice(await failure(response));
    const chosen = $('model').value || read(localStorage, 'bayan.model');
    const names = (await response.json()).data.map((model) => model.id);
    $('model').replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
    notice('');
  } catch {
    notice(t('offline'));
  }
}

/* ---- Settings ---- */

function translate() {
  document.documentElement.lang = language;
  document.documentElement.dir = side();
  document.title = t('name');
  turnField($('text'));
  turnField($('system'));
  for (const node of document.querySelectorAll('[data-t]')) node.textContent = t(node.dataset.t);
  for (const node of document.querySelectorAll('[data-label]')) node.setAttribute('aria-label', t(node.dataset.label));
  for (const node of document.querySelectorAll('[data-hint]')) node.placeholder = t(node.dataset.hint);
}

function theme() {
  const chosen = read(localStorage, 'bayan.theme');
  if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen;
  else delete document.documentElement.dataset.theme;
}

function openMenu(open) {
  document.body.classList.toggle('menu', open);
  $('shade').hidden = !open;
  $('menu').setAttribute('aria-expanded', String(open));
}
const closeMenu = () => openMenu(false);

$('form').addEventListener('submit', (event) => {
  event.preventDefault();
  submit();
});
$('text').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
$('text').addEventListener('input', grow);
$('system').addEventListener('input', () => turnField($('system')));
$('stop').addEventListener('click', () => running?.abort());
$('new').addEventListener('click', () => {
  leave();
  conversation = fresh();
  show();
  showList();
  closeMenu();
  $('text').focus();
});
$('menu').addEventListener('click', () => openMenu(!document.body.classList.contains('menu')));
$('shade').addEventListener('click', closeMenu);
$('model').addEventListener('change', () => write(localStorage, 'bayan.model', $('model').value));
$('settings').addEventListener('click', () => $('panel').showModal());
$('panel').addEventListener('close', () => {
  const key = $('key').value.trim();
  const changed = key !== (read(sessionStorage, 'bayan.key') ?? '');
  write(sessionStorage, 'bayan.key', key);
  write(localStorage, 'bayan.system', $('system').value.trim());
  if (changed) models();
});
$('language').addEventListener('change', () => {
  language = $('language').value;
  write(localStorage, 'bayan.language', language);
  translate();
  if (!running) show();
  showList();
});
$('theme').addEventListener('change', () => {
  write(localStorage, 'bayan.theme', $('theme').value);
  theme();
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape') closeMenu();
});

$('key').value = read(sessionStorage, 'bayan.key') ?? '';
$('system').value = read(localStorage, 'bayan.system') ?? '';
$('language').value = language;
$('theme').value = read(localStorage, 'bayan.theme') ?? 'auto';
theme();
translate();
conversation = stored()[0] ?? conversation;
show();
showList();
models();
