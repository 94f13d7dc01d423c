package commandline

import "strings"

// Tail keeps the end of what is written to it, such as the standard error of a child process.
type Tail struct {
	// Max is how many bytes are kept.
	Max int
	b   []byte // len(b) <= Max after each Write
}

// Write never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - t.Max; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

// String returns what is kept, without space around it.
func (t *Tail) String() string { return strings.TrimSpace(string(t.b)) }
