// What the browser keeps: chats and pictures in IndexedDB, settings in localStorage, the key in sessionStorage.

const STORES = ["chats", "pictures"];

const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

class Database {
  constructor(database) {
    this.database = database;
    // Another tab has a newer version of this page.
    database.onversionchange = () => database.close();
  }

  run(store, mode, work) {
    return new Promise((resolve, reject) => {
      const transaction = this.database.transaction(store, mode);
      const request = work(transaction.objectStore(store));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  }

  all(store) {
    return this.run(store, "readonly", (records) => records.getAll());
  }

  get(store, id) {
    return this.run(store, "readonly", (records) => records.get(id));
  }

  put(store, record) {
    return this.run(store, "readwrite", (records) => records.put(record));
  }

  delete(store, id) {
    return this.run(store, "readwrite", (records) => records.delete(id));
  }

  // The ids of the pictures of a chat.
  picturesOf(chat) {
    return this.run("pictures", "readonly", (records) => records.index("chat").getAllKeys(chat));
  }
}

// Where the browser gives no database: the same, until the page is left.
class Memory {
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

  async picturesOf(chat) {
    const pictures = await this.all("pictures");
    return pictures.filter((picture) => picture.chat === chat).map((picture) => picture.id);
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
