// What the browser keeps: chats and pictures in IndexedDB, settings in localStorage, the key in sessionStorage.

const STORES = ["chats", "pictures"];

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

// Records until the page is left, where the browser gives no database or no more room in it.
class Memory {
  isFull = false;
  records = Object.fromEntries(STORES.map((store) => [store, new Map()]));

  async all(store) {
    return [...this.records[store].values()];
  }

  async get(store, id) {
    return this.records[store].get(id);
  }

  async put(store, record) {
    this.records[store].set(record.id, record);
  }

  async delete(store, id) {
    this.records[store].delete(id);
  }

  // The ids of the pictures of a chat.
  async picturesOf(chat) {
    const pictures = await this.all("pictures");
    return pictures.filter((picture) => picture.chat === chat).map((picture) => picture.id);
  }
}

class Database {
  // What the browser refused to store.
  rest = new Memory();

  constructor(database) {
    this.database = database;
    // Another tab has a newer version of this page.
    database.onversionchange = () => database.close();
  }

  get isFull() {
    return STORES.some((store) => this.rest.records[store].size > 0);
  }

  run(store, mode, work) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(store, mode);
      const request = work(transaction.objectStore(store));
      // At once, since the page may be left.
      transaction.commit();
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }

  async all(store) {
    const stored = await this.run(store, "readonly", (records) => records.getAll());
    const rest = await this.rest.all(store);
    return [...stored.filter(({ id }) => !rest.some((record) => record.id === id)), ...rest];
  }

  async get(store, id) {
    return (await this.rest.get(store, id)) ?? this.run(store, "readonly", (records) => records.get(id));
  }

  async put(store, record) {
    try {
      await this.run(store, "readwrite", (records) => records.put(record));
      await this.rest.delete(store, record.id);
    } catch {
      await this.rest.put(store, record);
    }
  }

  // What is deleted makes room for what was refused.
  async delete(store, id) {
    await this.rest.delete(store, id);
    await this.run(store, "readwrite", (records) => records.delete(id));
    for (const store of STORES) {
      for (const record of await this.rest.all(store)) {
        // It may have been deleted meanwhile.
        if (await this.rest.get(store, record.id)) await this.put(store, record);
      }
    }
  }

  async picturesOf(chat) {
    const stored = await this.run("pictures", "readonly", (records) => records.index("chat").getAllKeys(chat));
    return [...stored, ...(await this.rest.picturesOf(chat))];
  }
}

// The database, and whether it outlasts the page.
export async function openStore() {
  try {
    const request = indexedDB.open("qbridge", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("chats", { keyPath: "id" });
      request.result.createObjectStore("pictures", { keyPath: "id" }).createIndex("chat", "chat");
    };
    return { store: new Database(await settled(request)), lasts: true };
  } catch {
    return { store: new Memory(), lasts: false };
  }
}

// A value under a name, in `localStorage` or `sessionStorage`, which a browser may refuse to give.
export function remembered(storage, name) {
  let value = null;
  try {
    value = window[storage].getItem(name);
  } catch {
    // It is kept until the page is left.
  }
  return {
    get: () => value,
    set(next) {
      value = next;
      try {
        window[storage].setItem(name, next);
      } catch {
        // As above.
      }
    },
  };
}

// A new id. `crypto.randomUUID` is not there on plain http.
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
