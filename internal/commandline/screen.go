package commandline

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/term"
)

// Screen is a terminal with a block of lines at its end that is drawn over. What is written to it scrolls above the block.
type Screen struct {
	Out io.Writer

	mu    sync.Mutex
	block string
}

// Terminal reports whether the screen is a terminal.
func (s *Screen) Terminal() bool { return IsTerminal(s.Out) }

// Size is that of the terminal, or of most if it is none.
func (s *Screen) Size() (width, height int) {
	if f, ok := s.Out.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w >= 10 && h > 0 {
			return w, h
		}
	}
	return 80, 24
}

// Write implements io.Writer.
func (s *Screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.block == "" {
		return s.Out.Write(p)
	}
	var b bytes.Buffer
	s.erase(&b)
	b.Write(p)
	if !bytes.HasSuffix(p, []byte("\n")) {
		b.WriteByte('\n')
	}
	b.WriteString(s.block)
	if _, err := s.Out.Write(b.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Draw replaces the block. Each line of it ends with a newline.
func (s *Screen) Draw(block string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	block = s.fit(block)
	var b bytes.Buffer
	s.erase(&b)
	b.WriteString(block)
	_, _ = s.Out.Write(b.Bytes())
	s.block = block
}

// colours are what a line may hold beside its text.
var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

// fit cuts lines that would take two rows.
func (s *Screen) fit(block string) string {
	if !s.Terminal() {
		return block
	}
	width, _ := s.Size()
	var b strings.Builder
	for line := range strings.Lines(block) {
		line = strings.TrimSuffix(line, "\n")
		if plain := []rune(colours.ReplaceAllString(line, "")); len(plain) >= width {
			line = string(plain[:width-1])
		}
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.String()
}

// erase clears the block and leaves the cursor where it began. A terminal that was made narrower since has wrapped the lines.
func (s *Screen) erase(b *bytes.Buffer) {
	if s.block == "" {
		return
	}
	width, height := s.Size()
	rows := 0
	for line := range strings.Lines(s.block) {
		n := utf8.RuneCountInString(colours.ReplaceAllString(strings.TrimSuffix(line, "\n"), ""))
		if rows++; s.Terminal() && n > width {
			rows += (n - 1) / width
		}
	}
	if s.Terminal() {
		rows = min(rows, height-1) // the cursor goes no higher
	}
	fmt.Fprintf(b, "\r\x1b[%dA\x1b[J", rows) // to the left, where the echo of Ctrl-C may be, up, and clear what is below
}

// Keep leaves the block on the screen, and begins a new one below.
func (s *Screen) Keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.block = ""
}
