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
