package testserver

import (
	"bytes"
	"sync"
)

// Tail keeps the last 64 KiB that a process has written.
type Tail struct {
	mu  sync.Mutex
	buf []byte
}

func (w *Tail) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, p...)
	if over := len(w.buf) - 64<<10; over > 0 {
		w.buf = bytes.Clone(w.buf[over:])
	}
	return len(p), nil
}

// String is what it has kept.
func (w *Tail) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.buf)
}
