# SPDX-License-Identifier: Apache-2.0
# Sorting with a comparison of its own, regular expressions, hashes, strings, recursion.
use strict;
use warnings;

sub fibonacci { my ($n) = @_; return $n < 2 ? $n : fibonacci($n - 1) + fibonacci($n - 2) }

my ($x, $ready) = (1, 0);
while (1) {
    my @numbers = map { $x = ($x * 1103515245 + 12345) % 2147483648 } 1 .. 2000;
    my @sorted = sort { $a % 1000 <=> $b % 1000 or $a <=> $b } @numbers;
    my $text = join ' ', map { sprintf '%08x', $_ } @sorted;
    my %seen;
    $seen{$1}++ while $text =~ /\b([0-9a-f]{2})[0-9a-f]*?([02468ace])\b/g;
    $text =~ s/(\w)(\w)/$2$1/g;
    my @parts = reverse split /(?<=a)\s*/, $text;
    fibonacci(14);
    if (!$ready++) { open my $file, '>', $ARGV[0] or die; close $file }
}
