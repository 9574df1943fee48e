import '@fontsource-variable/vazirmatn/wght.css';
import './ui/base.css';
import './ui/frame.css';
import './ui/chat.css';
import './ui/answer.css';
import './ui/panels.css';
import './ui/training.css';
import './ui/print.css';
import { render } from 'preact';
import { App } from './ui/App';
import { start } from './state/app';

void start();
render(<App />, document.getElementById('app')!);

if ('serviceWorker' in navigator && import.meta.env.PROD) {
  navigator.serviceWorker.register(new URL('sw.js', document.baseURI)).catch(() => {
    // Private windows may refuse a service worker; the page then works online only.
  });
}
