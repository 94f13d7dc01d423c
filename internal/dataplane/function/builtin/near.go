package builtin

import (
	"cmp"
	"slices"
	"strings"
)

// Near lists the known names that look like name, for an error message, or says where all of them are listed if none does.
func Near[V any](name string, known map[string]V) string {
	type candidate struct {
		name     string
		distance int
	}
	var all []candidate
	for k := range known {
		d := distance(strings.ToLower(name), strings.ToLower(k))
		if strings.Contains(k, name) || strings.Contains(name, k) {
			d = min(d, 1)
		}
		all = append(all, candidate{k, d})
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.distance, b.distance), cmp.Compare(a.name, b.name))
	})
	var names []string
	for _, c := range all {
		if c.distance <= max(2, len(name)/3) && len(names) < 5 {
			names = append(names, c.name)
		}
	}
	if len(names) > 0 && len(name) <= 64 {
		return "; near it are " + strings.Join(names, ", ")
	}
	return "; `levada builtins` lists those that there are"
}

// distance counts the insertions, deletions and replacements that make a into b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
