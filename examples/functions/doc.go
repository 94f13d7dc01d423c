// Package functions holds the tests of the example functions beside it, each a program of its own.
package functions
