package main

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

	"github.com/levada-io/levada/internal/commandline"
)

// screen is a terminal with a block of lines at its end that is drawn over. What is written to it scrolls above the block.
type screen struct {
	out io.Writer

	mu    sync.Mutex
	block string
}

// terminal reports whether somebody looks at it.
func (s *screen) terminal() bool { return commandline.IsTerminal(s.out) }

// size is that of the terminal, or of most if it is none.
func (s *screen) size() (width, height int) {
	if f, ok := s.out.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w >= 10 && h > 0 {
			return w, h
		}
	}
	return 80, 24
}

// Write implements io.Writer.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.block == "" {
		return s.out.Write(p)
	}
	var b bytes.Buffer
	s.erase(&b)
	b.Write(p)
	if !bytes.HasSuffix(p, []byte("\n")) {
		b.WriteByte('\n')
	}
	b.WriteString(s.block)
	if _, err := s.out.Write(b.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// draw replaces the block. Each line of it ends with a newline.
func (s *screen) draw(block string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	block = s.fit(block)
	var b bytes.Buffer
	s.erase(&b)
	b.WriteString(block)
	_, _ = s.out.Write(b.Bytes())
	s.block = block
}

// colours are what a line may hold beside its text.
var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

// fit cuts lines that would take two rows.
func (s *screen) fit(block string) string {
	if !s.terminal() {
		return block
	}
	width, _ := s.size()
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
func (s *screen) erase(b *bytes.Buffer) {
	if s.block == "" {
		return
	}
	width, height := s.size()
	rows := 0
	for line := range strings.Lines(s.block) {
		n := utf8.RuneCountInString(colours.ReplaceAllString(strings.TrimSuffix(line, "\n"), ""))
		if rows++; s.terminal() && n > width {
			rows += (n - 1) / width
		}
	}
	if s.terminal() {
		rows = min(rows, height-1) // the cursor goes no higher
	}
	fmt.Fprintf(b, "\r\x1b[%dA\x1b[J", rows) // to the left, where the echo of Ctrl-C may be, up, and clear what is below
}

// keep leaves the block on the screen, and begins a new one below.
func (s *screen) keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.block = ""
}
