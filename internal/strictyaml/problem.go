package strictyaml

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Problem is one thing that is wrong with a text, and where.
type Problem struct {
	File string
	// Line and Column count from 1, columns in characters. They are 0 when the value was not read from a text.
	Line, Column int
	// Path of the field, say backends[1].tls.ca. It is empty for the text as a whole.
	Path string
	// Message says what was found.
	Message string
	// Expected says what would be right, when that can be said briefly.
	Expected string
	// DidYouMean is what was probably meant.
	DidYouMean string
	// Hint says what to do.
	Hint string

	// source is the line that it is about.
	source string
	// last is 1 for what is said about all the others, behind them.
	last int
}

// Error is the problem in one line: file:line:column: path: message.
func (p Problem) Error() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File + ":")
		if p.Line > 0 {
			fmt.Fprintf(&b, "%d:%d:", p.Line, p.Column)
		}
		b.WriteByte(' ')
	}
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Message)
	for _, more := range []struct{ intro, text string }{{"expected ", p.Expected}, {"did you mean ", p.DidYouMean}, {"", p.Hint}} {
		if more.text != "" {
			b.WriteString("; " + more.intro + more.text)
		}
	}
	return b.String()
}

// excerptWidth is how much of a long line is shown, in characters.
const excerptWidth = 110

// Excerpt is the line of the text with a mark under the place, ending in a line feed; empty when the problem has no place.
func (p Problem) Excerpt() string {
	if p.Line == 0 || strings.TrimSpace(p.source) == "" {
		return ""
	}
	line, column := []rune(strings.ReplaceAll(p.source, "\t", " ")), min(p.Column-1, utf8.RuneCountInString(p.source))
	for i, r := range line {
		if unicode.IsControl(r) { // a text must not reach the terminal's controls
			line[i] = utf8.RuneError
		}
	}
	if cut := column - (excerptWidth - 20); cut > 0 {
		line, column = line[cut:], column-cut
	}
	line = line[:min(len(line), excerptWidth)]
	number := fmt.Sprintf("%6d", p.Line)
	return fmt.Sprintf("%s | %s\n%*s | %*s^\n", number, strings.TrimRight(string(line), " "), len(number), "", column, "")
}

// Problems are everything that is wrong. As an error they are a line each.
type Problems []Problem

// Error is a line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Err is nil without problems. It is there because Problems(nil) in an error is not nil.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// Sort puts the problems into the order of the text, and that there are too many of them at the end.
func (ps Problems) Sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.last, b.last), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
}

// UnknownName is the error of an UnmarshalText whose type has a fixed set of names.
type UnknownName struct {
	Name  string
	Known []string
}

func (e UnknownName) Error() string { return Quote(e.Name) + " does not exist" }

// Suggest is the candidate that was probably meant by word, or "" when none is near enough.
func Suggest(word string, candidates []string) string {
	const longest = 64 // what is longer was not mistyped, and the distance costs its square
	if word == "" || len(word) > longest || len(candidates) > 500 {
		return ""
	}
	best, bestDistance := "", len(word)/3+1
	for _, c := range slices.Sorted(slices.Values(candidates)) {
		if len(c) > longest || c == word {
			continue
		}
		if d := editDistance(strings.ToLower(word), strings.ToLower(c)); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// editDistance counts the insertions, deletions, replacements and swaps of neighbours that make a into b.
func editDistance(a, b string) int {
	x, y := []rune(a), []rune(b)
	rows := make([][]int, len(x)+1)
	for i := range rows {
		rows[i] = make([]int, len(y)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(x); i++ {
		for j := 1; j <= len(y); j++ {
			same := 1
			if x[i-1] == y[j-1] {
				same = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+same)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(x)][len(y)]
}

// Quote is a text in quotes, cut when it is long.
func Quote(s string) string {
	if r := []rune(s); len(r) > 60 {
		s = string(r[:57]) + "..."
	}
	return fmt.Sprintf("%q", s)
}
