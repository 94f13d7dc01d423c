package strictyaml_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/levada-io/levada/internal/strictyaml"
)

type house struct {
	Name   string        `yaml:"name"`
	Rooms  []room        `yaml:"rooms"`
	Roof   *roof         `yaml:"roof,omitempty"`
	Floors int           `yaml:"floors"`
	Height float64       `yaml:"height"`
	Old    bool          `yaml:"old"`
	Built  time.Duration `yaml:"built"`
	Colour colour        `yaml:"colour"`

	Dropped string `yaml:"-"`
	private int
}

type room struct {
	Doors int `yaml:"doors"`
}

func (r *room) SetDefaults() { r.Doors = 1 }

type roof struct {
	Tiles int `yaml:"tiles"`
}

func (r *roof) SetDefaults() { r.Tiles = 1000 }

type colour string

func (c *colour) UnmarshalText(text []byte) error {
	*c = colour(text) // also when it is refused
	if s := string(text); s != "red" && s != "2" {
		return strictyaml.UnknownName{Name: s, Known: []string{"red"}}
	}
	return nil
}

func TestDecode(t *testing.T) {
	h := house{Height: 3, Old: true, Built: time.Hour, private: 7, Rooms: []room{{5}, {6}, {7}}}
	_, problems := strictyaml.Decode("h.yaml", []byte(`
name: "a\tb"
rooms: [{}, {doors: 0}]
roof: {}
floors: 2
colour: 2 # text is read from any scalar
`), &h)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	want := house{Name: "a\tb", Height: 3, Old: true, Built: time.Hour, private: 7, Rooms: []room{{1}, {0}}, Roof: &roof{1000}, Floors: 2, Colour: "2"}
	if diff := cmp.Diff(want, h, cmp.AllowUnexported(house{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestDecodeGoesOn reads what can be read beside what cannot.
func TestDecodeGoesOn(t *testing.T) {
	h := house{Colour: "red", Floors: 1}
	d, problems := strictyaml.Decode("h.yaml", []byte("name: x\nfloors: many\ncolour: rad\nroms: []\nroof: {tiles: 1, tiles: 2}\nDropped: y\nprivate: 1\nheight: 1e3\n"), &h)
	if diff := cmp.Diff(house{Name: "x", Colour: "red", Floors: 1, Roof: &roof{1}, Height: 1000}, h, cmp.AllowUnexported(house{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	want := `h.yaml:2:9: floors: is the text "many"; expected a whole number
h.yaml:3:9: colour: "rad" does not exist; expected a text; did you mean red
h.yaml:4:1: roms: there is no such field; did you mean rooms
h.yaml:5:18: roof.tiles: is there twice; the first is in line 5; keep one of them
h.yaml:6:1: Dropped: there is no such field; expected one of name, rooms, roof, floors, height, old, built, colour
h.yaml:7:1: private: there is no such field; expected one of name, rooms, roof, floors, height, old, built, colour`
	if diff := cmp.Diff(want, problems.Error()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	var later strictyaml.Problems
	for _, path := range []string{"floors", "rooms", "rooms[3].doors", "roof.tiles", "name", "missing.field"} {
		later = d.Add(later, strictyaml.Problem{Path: path, Message: "is wrong"})
	}
	// Not that of floors and rooms, which follow from what was said above.
	want = "h.yaml:5:15: roof.tiles: is wrong\nh.yaml:1:7: name: is wrong\nh.yaml:1:1: missing.field: is wrong"
	if diff := cmp.Diff(want, later.Error()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !d.Broken("rooms") || !d.Broken("") || d.Broken("roof") {
		t.Error("what is broken")
	}
	var none *strictyaml.Document
	if line, _ := none.Position("name"); line != 0 || none.Broken("") || none.Add(nil, strictyaml.Problem{Path: "x", Message: "y"}).Error() != "x: y" {
		t.Error("no document")
	}
}

func TestDecodePanicsOnTypesItDoesNotKnow(t *testing.T) {
	defer func() {
		if p := recover(); p == nil || !strings.Contains(p.(string), "map[string]string") {
			t.Errorf("panic: %v", p)
		}
	}()
	var v struct {
		M map[string]string `yaml:"m"`
	}
	strictyaml.Decode("x", []byte("m: 1"), &v)
}

func TestSuggest(t *testing.T) {
	known := []string{"listeners", "tls", "to", "admin"}
	for word, want := range map[string]string{
		"listener": "listeners", "Listeners": "listeners", "lsiteners": "listeners", "tsl": "tls", "TLS": "tls", "t0": "", "To": "to", "nothing": "", "": "",
		"tls": "", strings.Repeat("listeners", 10): "",
	} {
		if got := strictyaml.Suggest(word, known); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func TestExcerpt(t *testing.T) {
	var h house
	for text, want := range map[string]string{
		"floors: x":                  "     1 | floors: x\n       |         ^\n",
		"\n\nname: ä\nfloors: é # ü": "     4 | floors: é # ü\n       |         ^\n",
		"{name: \"" + strings.Repeat("ä", 300) + "\", floors: x}": "     1 | " + strings.Repeat("ä", 79) + "\", floors: x}\n" +
			"       | " + strings.Repeat(" ", 90) + "^\n",
		// YAML does not allow such characters, and only the line is known.
		"floors: \"\t\u007f\u009b\"": "     1 | floors: \" \ufffd\ufffd\"\n       | ^\n",
		"name: é\xffa":               "     1 | name: é\ufffda\n       |        ^\n",
	} {
		_, problems := strictyaml.Decode("", []byte(text), &h)
		if len(problems) != 1 {
			t.Fatalf("%q: %v", text, problems)
		}
		if diff := cmp.Diff(want, problems[0].Excerpt()); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	}
}

// That there are more problems than are shown is said behind them.
func TestTooMany(t *testing.T) {
	var h house
	d, problems := strictyaml.Decode("h.yaml", []byte(strings.Repeat("rooms: []\n", 200)), &h)
	problems = d.Add(problems, strictyaml.Problem{Path: "name", Message: "is missing"})
	problems.Sort()
	const want = "h.yaml: there are more than 100 problems; the rest is not shown"
	if len(problems) != 101 || problems[100].Error() != want {
		t.Errorf("%d problems, the last is %v, want %s", len(problems), problems[len(problems)-1], want)
	}
	var later strictyaml.Problems
	d, _ = strictyaml.Decode("h.yaml", []byte("name: a\n"), &h)
	for range 150 {
		later = d.Add(later, strictyaml.Problem{Path: "name", Message: "is wrong"})
	}
	if later.Sort(); len(later) != 101 || later[100].Error() != want {
		t.Errorf("%d problems, the last is %v, want %s", len(later), later[len(later)-1], want)
	}
}

// The library counts the lines of some errors from 0, and of others where something began.
func TestSyntaxLines(t *testing.T) {
	var h house
	for text, want := range map[string]string{
		"name: [":                            "1:1",
		"name: a\nrooms: [{}, {}\nroof: 1":   "2:1",
		"name: a\n\nroof: {tiles: 1\n":       "3:1",
		"name: a\nrooms: ]":                  "2:1",
		"name: a\n- b\n":                     "2:1",
		"name: a\nroof: @b":                  "2:1",
		"name: a\nroof: \"b\n\n":             "2:1",
		"name: a\n floors: 1":                "2:1",
		"name: a\nroof:\n  tiles: 1\n\tx: 2": "4:1",
	} {
		_, problems := strictyaml.Decode("", []byte(text), &h)
		if got := fmt.Sprintf("%d:%d", problems[0].Line, problems[0].Column); len(problems) != 1 || got != want || !strings.HasPrefix(problems[0].Message, "not YAML") {
			t.Errorf("%q: %s %v, want %s", text, got, problems, want)
		}
	}
}
