/**
 * Reading aloud and dictation, by voices and recognizers of the system only: those that send text or sound to a server
 * are not offered.
 */
import type { Direction } from '../text/direction';
import { languageOf } from '../text/direction';
import { getState, set } from './store';

const synthesis = () => (typeof speechSynthesis === 'undefined' ? null : speechSynthesis);

/** The system's own voice of a language, or null. */
export function voiceOf(language: string): SpeechSynthesisVoice | null {
  const voices = synthesis()?.getVoices() ?? [];
  const own = voices.filter((voice) => voice.localService && voice.lang.toLowerCase().startsWith(language));
  return own.find((voice) => voice.default) ?? own[0] ?? null;
}

/** Calls `listener` when the list of voices changes; many browsers load it late. */
export function onVoices(listener: () => void): () => void {
  const speaker = synthesis();
  speaker?.addEventListener?.('voiceschanged', listener);
  return () => speaker?.removeEventListener?.('voiceschanged', listener);
}

/** Reads paragraphs aloud, each in the voice of its direction's language; a paragraph without a voice is left out. */
export function speak(turn: string, paragraphs: { text: string; direction: Direction }[]): void {
  const speaker = synthesis();
  if (!speaker) return;
  speaker.cancel();
  const utterances = paragraphs.flatMap(({ text, direction }) => {
    const voice = voiceOf(languageOf(direction));
    if (!voice) return [];
    const utterance = new SpeechSynthesisUtterance(text);
    utterance.voice = voice;
    utterance.lang = voice.lang;
    return [utterance];
  });
  const ends = () => getState().speaking === turn && set({ speaking: null });
  const last = utterances.at(-1);
  if (!last) return;
  last.addEventListener('end', ends);
  for (const utterance of utterances) {
    utterance.addEventListener('error', ends);
    speaker.speak(utterance);
  }
  set({ speaking: turn });
}

export function stopSpeaking(): void {
  synthesis()?.cancel();
  set({ speaking: null });
}

interface Recognition extends EventTarget {
  lang: string;
  processLocally: boolean;
  continuous: boolean;
  interimResults: boolean;
  start(): void;
  stop(): void;
}
interface RecognitionClass {
  new (): Recognition;
  available?(options: { langs: string[]; processLocally: boolean }): Promise<string>;
}
interface RecognitionEvent extends Event {
  resultIndex: number;
  results: ArrayLike<ArrayLike<{ transcript: string }> & { isFinal: boolean }>;
}

const recognition = () => (globalThis as { SpeechRecognition?: RecognitionClass }).SpeechRecognition;

/** Whether the browser recognizes this language on the device itself. */
export async function canDictate(language: string): Promise<boolean> {
  try {
    return (await recognition()?.available?.({ langs: [language], processLocally: true })) === 'available';
  } catch {
    return false;
  }
}

/** Starts dictation; `onText` gets each finished piece. The result stops it. */
export function dictate(language: string, onText: (text: string) => void, onEnd: () => void): () => void {
  const recognizer = new (recognition()!)();
  recognizer.lang = language;
  recognizer.processLocally = true;
  recognizer.continuous = true;
  recognizer.interimResults = false;
  recognizer.addEventListener('result', (event) => {
    const { results, resultIndex } = event as RecognitionEvent;
    for (let at = resultIndex; at < results.length; at++) if (results[at]!.isFinal) onText(results[at]![0]!.transcript);
  });
  recognizer.addEventListener('end', onEnd);
  recognizer.addEventListener('error', onEnd);
  recognizer.start();
  return () => recognizer.stop();
}
