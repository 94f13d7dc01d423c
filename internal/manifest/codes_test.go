package manifest_test

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/internal/manifest"
)

func TestCatalogue(t *testing.T) {
	form := regexp.MustCompile(`^LV[12][0-9]{3}$`)
	all := manifest.Catalogue()
	if !slices.IsSortedFunc(all, func(a, b manifest.Explanation) int { return strings.Compare(string(a.Code), string(b.Code)) }) {
		t.Error("the codes are not in order")
	}
	seen := map[manifest.Code]bool{}
	for _, e := range all {
		if seen[e.Code] || !form.MatchString(string(e.Code)) {
			t.Errorf("code %q", e.Code)
		}
		seen[e.Code] = true
		if e.Title == "" || e.Text == "" || e.Wrong == "" || e.Right == "" || e.Severity == "" {
			t.Errorf("%s is incomplete: %+v", e.Code, e)
		}
	}
	if _, ok := manifest.Explain("LV9999"); ok {
		t.Error("an explanation of nothing")
	}
	if got := manifest.SuggestCode("LV1023"); got == "" {
		t.Error("nothing like LV1023")
	}
}

const (
	docs       = "../../docs/manifests.md"
	tableStart = "<!-- codes: written by go test ./internal/manifest -run TestCodesInDocs -update -->\n"
	tableEnd   = "<!-- end of codes -->\n"
)

// TestCodesInDocs keeps the table of codes in the documentation the same as the catalogue.
func TestCodesInDocs(t *testing.T) {
	data, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok1 := strings.Cut(string(data), tableStart)
	old, after, ok2 := strings.Cut(rest, tableEnd)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the codes", docs)
	}
	var table strings.Builder
	table.WriteString("\n| code | severity | what is wrong | what is behind it |\n|---|---|---|---|\n")
	for _, e := range manifest.Catalogue() {
		fmt.Fprintf(&table, "| %s | %s | %s | %s |\n", e.Code, e.Severity, e.Title, strings.ReplaceAll(e.Text, "|", "\\|"))
	}
	table.WriteString("\n")
	if *update {
		if err := os.WriteFile(docs, []byte(before+tableStart+table.String()+tableEnd+after), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(table.String(), old); diff != "" {
		t.Errorf("run the test with -update (-want +got):\n%s", diff)
	}
}

// TestExamplesInDocs: every manifest in the documentation is valid.
func TestExamplesInDocs(t *testing.T) {
	data, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(data), -1)
	checked := 0
	for _, block := range blocks {
		if !strings.Contains(block[1], "apiVersion:") {
			continue // a piece
		}
		checked++
		if problems := check(block[1]); len(problems) > 0 {
			t.Errorf("%s\n%s", block[1], describeAll(problems))
		}
	}
	if checked == 0 {
		t.Error("no manifests")
	}
}
