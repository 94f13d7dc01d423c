package process

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// inherited are the variables of this process that every function gets. All others are left out: they may be credentials of this process.
var inherited = []string{"PATH", "HOME", "TMPDIR", "LANG", "LC_*", "TZ", "NUMAFLOW_*"}

// defaultPath is for a process that has no PATH itself.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Inherited returns what a function gets of the environment of this process: PATH, HOME, TMPDIR, LANG, LC_*, TZ, NUMAFLOW_* and what allowed names, each a name or
// a prefix followed by *. With a user, HOME, USER and LOGNAME are that user's.
func Inherited(allowed []string, u *User) map[string]string {
	env := map[string]string{"PATH": defaultPath}
	for _, v := range os.Environ() {
		name, value, ok := strings.Cut(v, "=")
		if ok && name != "" && !strings.HasPrefix(name, "LEVADA_") && (matches(inherited, name) || matches(allowed, name)) {
			env[name] = value
		}
	}
	if u != nil {
		env["HOME"] = u.Home
		if u.Name != "" {
			env["USER"], env["LOGNAME"] = u.Name, u.Name
		}
	}
	return env
}

func matches(patterns []string, name string) bool {
	for _, p := range patterns {
		if prefix, ok := strings.CutSuffix(p, "*"); ok && strings.HasPrefix(name, prefix) || p == name {
			return true
		}
	}
	return false
}

var variablePattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*\*?$`)

// CheckVariables refuses what cannot be a name of a variable, or a prefix followed by *, and those of levada, which functions never get.
func CheckVariables(patterns []string) error {
	for _, p := range patterns {
		switch {
		case !variablePattern.MatchString(p):
			return fmt.Errorf("%q: expected NAME or PREFIX_*", p)
		case strings.HasPrefix(p, "LEVADA_"):
			return fmt.Errorf("%q: variables of levada are never given to functions; set it in the container's env", p)
		}
	}
	return nil
}
