package pipelinecmd

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/manifest"
)

// problemPage is what a command found, to be written in one of the formats.
type problemPage struct {
	problems  manifest.Problems
	manifests int
	lines     map[string][]string // by file; nil for no excerpts
}

var problemFormats = map[string]func(io.Writer, problemPage) error{
	"text":   writeText,
	"json":   writeJSON,
	"sarif":  writeSARIF,
	"github": writeGitHub,
}

func (p problemPage) count(s manifest.Severity) (n int) {
	for _, problem := range p.problems {
		if problem.Severity == s {
			n++
		}
	}
	return n
}

// writeText is for people: a problem a paragraph.
func writeText(w io.Writer, page problemPage) error {
	var b strings.Builder
	for _, p := range page.problems {
		b.WriteString(commandline.Printable(p.String()) + "\n")
		writeExcerpt(&b, p, page.lines[p.File])
		if p.Expected != "" {
			fmt.Fprintf(&b, "    expected: %s\n", commandline.Printable(p.Expected))
		}
		if p.DidYouMean != "" {
			fmt.Fprintf(&b, "    did you mean: %s\n", commandline.Printable(p.DidYouMean))
		}
		if p.Hint != "" {
			fmt.Fprintf(&b, "    hint: %s\n", commandline.Printable(p.Hint))
		}
		if p.Severity != manifest.SeverityNote {
			fmt.Fprintf(&b, "    more: levada explain %s\n", p.Code)
		}
	}
	fmt.Fprintf(&b, "%s: %s, %s\n", plural(page.manifests, "manifest"),
		plural(page.count(manifest.SeverityError), "error"), plural(page.count(manifest.SeverityWarning), "warning"))
	_, err := io.WriteString(w, b.String())
	return err
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

const (
	excerptWidth = 110
	tabWidth     = 4
)

// writeExcerpt shows the line of a problem with a caret under its column.
func writeExcerpt(b *strings.Builder, p manifest.Problem, lines []string) {
	if p.Line < 1 || p.Line > len(lines) {
		return
	}
	line := []rune(strings.TrimRight(lines[p.Line-1], "\r"))
	column := min(max(p.Column, 1), len(line)+1)
	start := 0
	if column > excerptWidth-20 { // a long line is shown from shortly before the column
		start = column - 20
	}
	var text, caret strings.Builder
	for i, r := range line[start:] {
		if i >= excerptWidth {
			text.WriteString("...")
			break
		}
		width := 1
		if r == '\t' {
			width = tabWidth
			text.WriteString(strings.Repeat(" ", tabWidth))
		} else {
			text.WriteString(commandline.Printable(string(r)))
		}
		if start+i < column-1 {
			caret.WriteString(strings.Repeat(" ", width))
		}
	}
	number := fmt.Sprintf("%5d | ", p.Line)
	fmt.Fprintf(b, "%s%s\n%s%s^\n", number, strings.TrimRight(text.String(), " "), strings.Repeat(" ", len(number)-2)+"| ", caret.String())
}

func writeJSON(w io.Writer, page problemPage) error {
	problems := page.problems
	if problems == nil {
		problems = manifest.Problems{}
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		Manifests int               `json:"manifests"`
		Errors    int               `json:"errors"`
		Warnings  int               `json:"warnings"`
		Problems  manifest.Problems `json:"problems"`
	}{page.manifests, page.count(manifest.SeverityError), page.count(manifest.SeverityWarning), problems})
}

// details joins what is said beside the message, for formats with one text.
func details(p manifest.Problem) string {
	text := p.Message
	if p.Expected != "" {
		text += "; expected " + p.Expected
	}
	if p.DidYouMean != "" {
		text += "; did you mean " + p.DidYouMean + "?"
	}
	if p.Hint != "" {
		text += " (" + p.Hint + ")"
	}
	return text
}

// writeGitHub writes workflow commands, which GitHub shows beside the lines of a pull request.
func writeGitHub(w io.Writer, page problemPage) error {
	data := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	commands := map[manifest.Severity]string{
		manifest.SeverityError: "error", manifest.SeverityWarning: "warning", manifest.SeverityNote: "notice",
	}
	for _, p := range page.problems {
		place := ""
		if p.File != "" {
			place = "file=" + property.Replace(filepath.ToSlash(p.File)) + ","
		}
		if p.Line > 0 {
			place += fmt.Sprintf("line=%d,col=%d,", p.Line, p.Column)
		}
		if _, err := fmt.Fprintf(w, "::%s %stitle=%s::%s\n", commands[p.Severity], place, p.Code, data.Replace(details(p))); err != nil {
			return err
		}
	}
	return nil
}
