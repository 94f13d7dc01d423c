package matrix

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/testserver"
)

// What the clients that are compiled need, by the file that shows that Debian's package is there (relative to /usr/sbin, see testserver.Program).
var (
	cppNeeds = [][2]string{
		{"../include/grpcpp/generic/generic_stub.h", "libgrpc++-dev"}, {"../include/google/protobuf/util/json_util.h", "libprotobuf-dev"},
	}
	// Debian's libgrpc-java does not depend on what its classes load, so each is named.
	javaNeeds = [][2]string{
		{"../share/java/grpc-netty.jar", "libgrpc-java"}, {"../share/java/netty-codec-http2.jar", "libnetty-java"}, {"../share/java/guava.jar", "libguava-java"},
		{"../share/java/perfmark-api.jar", "libperfmark-java"}, {"../share/java/gson.jar", "libgoogle-gson-java"},
	}
	javaJars = []string{
		"grpc-api", "grpc-context", "grpc-core", "grpc-netty", "guava", "gson", "perfmark-api", "netty-buffer", "netty-codec", "netty-codec-http", "netty-codec-http2",
		"netty-common", "netty-handler", "netty-resolver", "netty-transport",
	}
)

func cppClient(t *testing.T) *exec.Cmd {
	compiler, config := testserver.Program(t, "g++", "g++"), testserver.Program(t, "pkg-config", "pkgconf")
	packages := needed(t, cppNeeds)
	dir := cached(t, "grpc-cpp", []string{source(t, "client.cc"), output(t, compiler, "--version"), packages}, func(dir string) {
		args := append([]string{"-std=c++17", "-o", filepath.Join(dir, "client"), filepath.Join("clients", "client.cc")},
			strings.Fields(output(t, config, "--cflags", "--libs", "grpc++", "protobuf"))...)
		output(t, compiler, args...)
	})
	return exec.Command(filepath.Join(dir, "client"))
}

func javaClient(t *testing.T) *exec.Cmd {
	compiler, java := testserver.Program(t, "javac", "openjdk-17-jdk-headless"), testserver.Program(t, "java", "openjdk-17-jre-headless")
	packages := needed(t, javaNeeds)
	var jars []string
	for _, jar := range javaJars {
		jars = append(jars, "/usr/share/java/"+jar+".jar")
	}
	jdk, err := filepath.EvalSymlinks(compiler) // names the version; asking the compiler for it takes seconds on a busy machine
	if err != nil {
		t.Fatal(err)
	}
	dir := cached(t, "grpc-java", []string{source(t, "Client.java"), jdk, packages}, func(dir string) {
		output(t, compiler, "--release", "17", "-d", dir, "-cp", strings.Join(jars, ":"), filepath.Join("clients", "Client.java"))
	})
	// One that starts quickly and takes little of a machine that measures times.
	return exec.Command(java, "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-cp", strings.Join(append(jars, dir), ":"), "Client")
}

// needed installs what is not there, and returns the versions of the packages.
func needed(t *testing.T, needs [][2]string) string {
	t.Helper()
	args := []string{"-W", "-f", "${Package} ${Version}\n"}
	for _, need := range needs {
		testserver.Program(t, need[0], need[1])
		args = append(args, need[1])
	}
	return output(t, testserver.Program(t, "dpkg-query", "dpkg"), args...)
}

// output runs a program that must succeed.
func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	said, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, said)
	}
	return string(said)
}

func source(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("clients", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// cached returns a folder in the user's cache directory that build has filled, in this run or in an earlier one with the same key.
func cached(t *testing.T, name string, key []string, build func(dir string)) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	parent := filepath.Join(cache, "levada-test")
	dir := filepath.Join(parent, fmt.Sprintf("%s-%x", name, sha256.Sum256([]byte(strings.Join(key, "\x00")))))
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	// A folder of its own, renamed when it is complete: a build that failed, or another process at the same time, leaves no half of one.
	fresh, err := os.MkdirTemp(parent, "new-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(fresh)
	build(fresh)
	if err := os.Rename(fresh, dir); err != nil {
		if _, stat := os.Stat(dir); stat != nil { // else another process was first
			t.Fatal(err)
		}
	}
	return dir
}
