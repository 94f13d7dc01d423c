package commandline

import "strings"

// Printable replaces the characters of a text that could command a terminal or change the order of what it shows: control characters, line ends and tabs among
// them, and marks of direction.
func Printable(s string) string { return strings.Map(visible, s) }

// PrintableLines is Printable for texts of several lines: line ends and tabs stay.
func PrintableLines(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		return visible(r)
	}, s)
}

func visible(r rune) rune {
	switch {
	case r < ' ', r >= 0x7f && r < 0xa0, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f, r == 0x2028, r == 0x2029:
		return '\ufffd'
	}
	return r
}

// FirstLine is the first line of a text, cut to what fits a row of a table.
func FirstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if len(s) > 100 {
		s = s[:100] + "..."
	}
	return Printable(s)
}

// Indent sets the lines of a text off by two spaces.
func Indent(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i := range lines {
		lines[i] = "  " + strings.ReplaceAll(Printable(strings.ReplaceAll(lines[i], "\t", "    ")), "\r", "")
	}
	return strings.Join(lines, "\n")
}
